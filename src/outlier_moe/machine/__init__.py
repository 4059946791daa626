"""The machine a stage runs on: memory, devices, locks, progress, logs."""
