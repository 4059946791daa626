"""What is systematic and what is massive, and the counts that it is said from."""
