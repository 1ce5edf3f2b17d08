"""Building blocks of models: layers, quantized layers, parts of transformers, recurrent layers, forward hooks."""
