"""What a recording will take, estimated from a model's configuration: memory, disk, operations, time and price."""
