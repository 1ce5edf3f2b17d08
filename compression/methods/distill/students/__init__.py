"""Who learns from whom, and copies of a teacher that are smaller."""
