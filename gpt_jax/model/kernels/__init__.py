"""The same attention and layers, faster: one file per kernel, chosen by `choice`."""
