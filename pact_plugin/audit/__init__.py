"""What a candidate model still refuses, and still helps with, compared with a reference model."""
