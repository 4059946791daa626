"""How a model is built: its layers and their parts, routers and experts, and the hooks that read them."""
