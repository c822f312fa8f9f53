"""The client side of fedpers: one file per method, beside the trainer, the store and the app."""
