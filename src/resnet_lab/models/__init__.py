"""The nets.

The package can be called as well, since both are `resnet_lab.models`: see `resnet_lab.api.models`.
"""

import sys

from resnet_lab import Room

sys.modules[__name__].__class__ = Room
