"""xentests: boots a Xen release as a nested host and says, feature by feature, whether it may ship.

The package is cut into layers, each knowing only those before it:
``release`` -> ``image`` -> ``lab`` -> ``host`` (-> ``payload``) -> ``report`` -> ``pytest_plugin`` and ``cli``.
"""
