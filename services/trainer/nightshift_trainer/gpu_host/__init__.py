"""Who else lies on the GPU: reading the platform's services, and unloading or loading their models."""
