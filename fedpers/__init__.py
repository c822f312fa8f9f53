"""fedpers: personalised federated learning that is private by construction.

This package is the core: settings, parts, models, data and evaluation. It knows neither server
(``strategies``) nor client (``clients``) and can be imported alone.
"""

__version__ = "0.1.0"
