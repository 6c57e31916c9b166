"""Image datasets, one file each; the name of a dataset before ``:`` is the name of its file."""

DEFAULT = "torchvision"
"""File of the datasets that have no file of their own."""

ALIASES = {
    "oxford_iiit_pet": "oxford_pets",
    "oxford_flowers": "flowers102",
    "describable_textures": "dtd",
}
"""Other names of a dataset -> its name in recipes: torchvision's, and those of CoOp's files."""
