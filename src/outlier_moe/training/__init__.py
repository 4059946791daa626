"""Training: one loop for any model, optimisers, batches and loss; after a kill a run goes on exactly."""
