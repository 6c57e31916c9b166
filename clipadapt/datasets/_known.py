"""The datasets that torchvision reads, with what its classes do not provide."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from clipadapt.datasets._clip_names import TRAFFIC_SIGNS
from clipadapt.datasets._sets import (
    CALTECH101,
    CIFAR_ENSEMBLE,
    COUNTRY211,
    DTD,
    EUROSAT,
    FER2013,
    FGVC_AIRCRAFT,
    FLOWERS102,
    FOOD101,
    GTSRB,
    MNIST,
    OXFORD_PETS,
    PCAM,
    PHOTO,
    RENDERED_SST2,
    STANFORD_CARS,
    STL10_ENSEMBLE,
    SUN397,
    Facts,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from clipadapt.core.api.data import SplitName

Splits: TypeAlias = "Mapping[SplitName, Mapping[str, Any]]"


@dataclass(frozen=True, slots=True)
class Known:
    """Facts about a dataset that torchvision does not provide.

    Attributes:
        kind: Name of the class in ``torchvision.datasets``.
        url: Address that is checked before the download starts.
        facts: Prompt, licence, citation and curated class names.
        splits: Arguments of that class for each published split; empty if there are no splits.
        folder: Its folder in torchvision's root, if CoOp's layout has none of that name.
        classes: Class names in label order, if torchvision's class has none.
        layout: Files and folders in torchvision's root without which it cannot be read; ``|`` separates alternatives.
        packages: Packages that torchvision's class needs besides torchvision's own requirements.
        downloads: Whether torchvision can download it.
    """

    kind: str
    url: str
    facts: Facts
    splits: Splits = field(default_factory=dict)
    folder: str = ""
    classes: tuple[str, ...] = ()
    layout: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    downloads: bool = True


_TRAIN_TEST: Final[Splits] = {"train": {"split": "train"}, "test": {"split": "test"}}
_ALL_THREE: Final[Splits] = {
    "train": {"split": "train"},
    "val": {"split": "val"},
    "test": {"split": "test"},
}
_OXFORD: Final = "https://www.robots.ox.ac.uk/~vgg/data"
KNOWN: Final[dict[str, Known]] = {
    "caltech101": Known(
        kind="Caltech101",
        url="https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
        facts=CALTECH101,
        folder="caltech101",
        layout=("caltech101/101_ObjectCategories/BACKGROUND_Google",),
    ),
    "cifar10": Known(
        kind="CIFAR10",
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        facts=Facts(
            template=PHOTO,
            licence="unknown (none stated by the authors)",
            citation="A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
            ensemble=CIFAR_ENSEMBLE,
        ),
        splits={"train": {"train": True}, "test": {"train": False}},
    ),
    "cifar100": Known(
        kind="CIFAR100",
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        facts=Facts(
            template=PHOTO,
            licence="unknown (none stated by the authors)",
            citation="A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
            ensemble=CIFAR_ENSEMBLE,
        ),
        splits={"train": {"train": True}, "test": {"train": False}},
    ),
    "country211": Known(
        kind="Country211",
        url="https://openaipublic.azureedge.net/clip/data/country211.tgz",
        facts=COUNTRY211,
        splits={"train": {"split": "train"}, "val": {"split": "valid"}, "test": {"split": "test"}},
        layout=("country211/train", "country211/valid", "country211/test"),
    ),
    "dtd": Known(
        kind="DTD",
        url=f"{_OXFORD}/dtd/download/dtd-r1.0.1.tar.gz",
        facts=DTD,
        splits=_ALL_THREE,
        folder="dtd/dtd",
    ),
    "eurosat": Known(
        kind="EuroSAT",
        url="https://huggingface.co/datasets/torchgeo/eurosat",
        facts=EUROSAT,
    ),
    "fer2013": Known(
        kind="FER2013",
        url="https://www.kaggle.com/c/challenges-in-representation-learning-facial-expression-recognition-challenge",
        facts=FER2013,
        splits=_TRAIN_TEST,
        # The order of the numbers in the file, which is not alphabetical.
        classes=("angry", "disgusted", "fearful", "happy", "sad", "surprised", "neutral"),
        layout=("fer2013/fer2013.csv|fer2013/icml_face_data.csv",),
        downloads=False,
    ),
    "fgvc_aircraft": Known(
        kind="FGVCAircraft",
        url=f"{_OXFORD}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
        facts=FGVC_AIRCRAFT,
        splits=_ALL_THREE,
        folder="fgvc-aircraft-2013b",
    ),
    "flowers102": Known(
        kind="Flowers102",
        url=f"{_OXFORD}/flowers/102/102flowers.tgz",
        facts=FLOWERS102,
        splits=_ALL_THREE,
        folder="flowers-102",
    ),
    "food101": Known(
        kind="Food101",
        url="http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
        facts=FOOD101,
        splits=_TRAIN_TEST,
    ),
    "gtsrb": Known(
        kind="GTSRB",
        url="https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/GTSRB-Training_fixed.zip",
        facts=GTSRB,
        splits=_TRAIN_TEST,
        classes=TRAFFIC_SIGNS,
        # torchvision numbers the folders of train, but reads the labels of test from the file.
        layout=(
            "gtsrb/GT-final_test.csv",
            "gtsrb/GTSRB/Final_Test/Images",
            *(f"gtsrb/GTSRB/Training/{label:05d}" for label in range(len(TRAFFIC_SIGNS))),
        ),
    ),
    "mnist": Known(
        kind="MNIST",
        url="https://ossci-datasets.s3.amazonaws.com/mnist/train-images-idx3-ubyte.gz",
        facts=MNIST,
        splits={"train": {"train": True}, "test": {"train": False}},
        layout=tuple(
            f"MNIST/raw/{split}-{what}-ubyte"
            for split in ("train", "t10k")
            for what in ("images-idx3", "labels-idx1")
        ),
    ),
    "oxford_iiit_pet": Known(
        kind="OxfordIIITPet",
        url=f"{_OXFORD}/pets/data/images.tar.gz",
        facts=OXFORD_PETS,
        splits={"train": {"split": "trainval"}, "test": {"split": "test"}},
        folder="oxford-iiit-pet",
    ),
    "pcam": Known(
        kind="PCAM",
        url="https://drive.google.com/",
        facts=PCAM,
        splits=_ALL_THREE,
        classes=("lymph node", "lymph node containing metastatic tumor tissue"),
        layout=tuple(
            f"pcam/camelyonpatch_level_2_split_{split}_{what}.h5"
            for split in ("train", "valid", "test")
            for what in "xy"
        ),
        packages=("h5py",),
    ),
    "rendered_sst2": Known(
        kind="RenderedSST2",
        url="https://openaipublic.azureedge.net/clip/data/rendered-sst2.tgz",
        facts=RENDERED_SST2,
        splits=_ALL_THREE,
        layout=("rendered-sst2/train", "rendered-sst2/valid", "rendered-sst2/test"),
    ),
    "stanford_cars": Known(
        kind="StanfordCars",
        url="https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
        facts=STANFORD_CARS,
        splits=_TRAIN_TEST,
        layout=(
            "stanford_cars/devkit/cars_meta.mat",
            "stanford_cars/devkit/cars_train_annos.mat",
            "stanford_cars/cars_test_annos_withlabels.mat",
            "stanford_cars/cars_train",
            "stanford_cars/cars_test",
        ),
        downloads=False,
    ),
    "stl10": Known(
        kind="STL10",
        url="http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
        facts=Facts(
            template=PHOTO,
            licence="unknown (none stated by the authors)",
            citation="A. Coates et al., An Analysis of Single-Layer Networks in Unsupervised Feature Learning, "
            "AISTATS 2011",
            ensemble=STL10_ENSEMBLE,
        ),
        splits=_TRAIN_TEST,
    ),
    "sun397": Known(
        kind="SUN397",
        url="http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz",
        facts=SUN397,
        layout=("SUN397/ClassName.txt",),
    ),
}
