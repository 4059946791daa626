"""Layer streaming: one decoder layer at a time is brought in from the checkpoint, and all sequences go through it."""
