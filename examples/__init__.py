"""Complete examples: the demonstration, a loop with Accelerate, and configurations for Axolotl."""
