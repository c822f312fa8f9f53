"""Who a client is: its long-lived keys, and the registry of public halves that a deployment pins.

Both encrypted channels stand on it: what a client says there is signed, and clients know each
other's keys from elsewhere than from the server.
"""
