"""kleiber's plugins of Hydra, which finds plugins only in the package `hydra_plugins`."""
