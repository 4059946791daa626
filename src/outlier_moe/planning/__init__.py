"""What a recording will take, foretold from a model's configuration: memory, disk, operations, time and price."""
