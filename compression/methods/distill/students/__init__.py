"""Which models are teacher and student, and smaller copies of a teacher."""
