"""Many runs: which, where, and what has become of them.

The package can be called as well, since both are `resnet_lab.sweep`: see `resnet_lab.api.sweep`.
"""

import sys

from resnet_lab import Room

sys.modules[__name__].__class__ = Room
