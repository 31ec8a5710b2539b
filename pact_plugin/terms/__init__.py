"""What is added to the task's loss: one file for each term."""
