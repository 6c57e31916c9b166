"""Image datasets, one file each; the name of a dataset before ``:`` is the name of its file."""

DEFAULT = "torchvision"
"""File of the datasets that have no file of their own."""

DEFAULT_NAMES = (
    "caltech101",
    "cifar10",
    "cifar100",
    "country211",
    "dtd",
    "eurosat",
    "fer2013",
    "fgvc_aircraft",
    "flowers102",
    "food101",
    "gtsrb",
    "mnist",
    "oxford_iiit_pet",
    "pcam",
    "rendered_sst2",
    "stanford_cars",
    "stl10",
    "sun397",
)
"""Names that this file serves, for lists."""


def served() -> dict[str, tuple[str, str, str]]:
    """Return a sentence, the citation and the needs of each of these names, for lists."""
    from clipadapt.datasets._known import KNOWN

    return {
        name: (
            "images with torchvision's splits",
            KNOWN[name].facts.citation,
            "a download, or NAME:DIR",
        )
        for name in DEFAULT_NAMES
    }


COLLECTIONS = ("coop",)
"""Files that serve several published datasets: the name of the dataset follows, as in ``coop:dtd:DIR``."""

_COOP = {
    "Caltech101": "caltech101",
    "DescribableTextures": "dtd",
    "EuroSAT": "eurosat",
    "FGVCAircraft": "fgvc_aircraft",
    "Food101": "food101",
    "OxfordFlowers": "flowers102",
    "OxfordPets": "oxford_pets",
    "StanfordCars": "stanford_cars",
    "SUN397": "sun397",
    "UCF101": "ucf101",
}
ALIASES = {
    "oxford_iiit_pet": "oxford_pets",
    **_COOP,
    **{f"split_zhou_{name}.json": key for name, key in _COOP.items()},
}
"""Other names of a dataset -> its name in recipes, without regard to case and marks: torchvision's, and CoOp's."""
