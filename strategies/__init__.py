"""The server side of fedpers: one file per method, beside the round loop and the app."""
