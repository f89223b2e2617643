"""The methods that a study compares: their names, and what they are compared with."""

from ..training.arguments import METHOD_NAMES as SSL_NAMES

_HOW = {
    "": "",
    "-continued": ", continued",
    "-linear": ", linear probe",
    "-continued-linear": ", continued, linear probe",
}
# In the order of tables and legends.
METHOD_NAMES = {
    "supervised": "supervised",
    "supervised-long": "supervised, equal total compute",
    **{method + suffix: name + how for suffix, how in _HOW.items() for method, name in SSL_NAMES.items()},
    "cnn": "small CNN",
    "profiles": "radial profiles",
}
METHODS = tuple(METHOD_NAMES)
BASELINES = ("supervised", "supervised-long", "cnn", "profiles")
PRETRAINED = tuple(method for method in METHODS if method not in BASELINES)
