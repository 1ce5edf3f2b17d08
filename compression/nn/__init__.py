"""What models are made of: layers, their quantized forms, the parts of transformers, recurrent layers."""
