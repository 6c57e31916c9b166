"""Facts about published image datasets that do not depend on who distributes them or splits them.

Templates are CoOp's (``CUSTOM_TEMPLATES`` in ``trainers/zsclip.py`` of the official code, commit ff61507), which the
papers after it use. So are the class names where the folders of a dataset have others (``NEW_CNAMES`` in
``datasets/eurosat.py`` and ``datasets/caltech101.py``, and the order of words in ``datasets/stanford_cars.py`` and
``datasets/sun397.py``); all others are the dataset's own, with ``_`` replaced by a space. Ensembles are those of the
CLIP paper (``data/prompts.md`` of the official code, commit 04f4dc2), without its class names. The datasets that CoOp
does not use have the class names of the CLIP paper, and its first template as the single one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from clipadapt.datasets._clip_names import COUNTRIES
from clipadapt.datasets._imagenet import PHOTO_TEMPLATES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PHOTO: Final = PHOTO_TEMPLATES[0]
_EACH: Final = ("a", "the")


@dataclass(frozen=True, slots=True)
class Facts:
    """Prompt, licence and citation of a dataset.

    Attributes:
        template: CoOp's prompt template, or the first of the CLIP paper's.
        licence: Licence of the images.
        citation: The paper.
        renamed: Name of a class in the files -> its name in prompts, where they differ.
        ensemble: The CLIP paper's templates; empty if it has none.
        spelled: Returns the name in prompts of a class that is not in ``renamed``.
    """

    template: str
    licence: str
    citation: str
    renamed: Mapping[str, str] = field(default_factory=dict)
    ensemble: tuple[str, ...] = ()
    spelled: Callable[[str], str] = str

    @property
    def template_sets(self) -> dict[str, tuple[str, ...]]:
        """The named sets of templates of the dataset."""
        return {"clip": self.ensemble} if self.ensemble else {}

    def prompt_name(self, name: str) -> str:
        """Return the name of a class in prompts."""
        return (self.renamed.get(name) or self.spelled(name)).replace("_", " ")


def _year_first(name: str) -> str:
    """Return the name of a car with the year first: ``2012 Audi S4 Sedan`` for ``Audi S4 Sedan 2012``."""
    return re.sub(r"^(.+) (\d{4})$", r"\2 \1", name)


def _kind_first(name: str) -> str:
    """Return the name of a scene with its kind first: ``outdoor church`` for ``church/outdoor``."""
    return " ".join(reversed(name.split("/")))


CIFAR_ENSEMBLE: Final = tuple(
    form.replace("A", article)
    for article in _EACH
    for form in (
        "a photo of A {}.", "a blurry photo of A {}.", "a black and white photo of A {}.",
        "a low contrast photo of A {}.", "a high contrast photo of A {}.", "a bad photo of A {}.",
        "a good photo of A {}.", "a photo of A small {}.", "a photo of A big {}.",
    )
)  # fmt: skip
STL10_ENSEMBLE: Final = tuple(f"a photo of {article} {{}}." for article in _EACH)
_CALTECH101_ENSEMBLE: Final = tuple(
    form.replace("A", article)
    for article in _EACH
    for form in (
        "a photo of A {}.",
        "a painting of A {}.",
        "A plastic {}.",
        "a sculpture of A {}.",
        "a sketch of A {}.",
        "a tattoo of A {}.",
        "A toy {}.",
        "a rendition of A {}.",
        "A embroidered {}.",
        "A cartoon {}.",
        "A {} in a video game.",
        "A plushie {}.",
        "A origami {}.",
        "art of A {}.",
        "graffiti of A {}.",
        "a drawing of A {}.",
        "a doodle of A {}.",
    )
)  # fmt: skip
CALTECH101: Final = Facts(
    template=PHOTO,
    licence="CC BY 4.0",
    citation="L. Fei-Fei et al., Learning Generative Visual Models from Few Training Examples, CVPR Workshops 2004",
    renamed={
        "airplanes": "airplane",
        "Faces": "face",
        "Faces_easy": "centered face",  # of the CLIP paper; CoOp leaves this class out
        "Leopards": "leopard",
        "Motorbikes": "motorbike",
    },
    ensemble=_CALTECH101_ENSEMBLE,
)
DTD: Final = Facts(
    template="{} texture.",
    licence="for research purposes (stated by the authors)",
    citation="M. Cimpoi et al., Describing Textures in the Wild, CVPR 2014",
    ensemble=tuple(
        f"a photo of {article} {{}} {kind}."
        for article in _EACH
        for kind in ("texture", "pattern", "thing", "object")
    ),
)
EUROSAT: Final = Facts(
    template="a centered satellite photo of {}.",
    licence="MIT",
    citation="P. Helber et al., EuroSAT: A Novel Dataset and Deep Learning Benchmark for Land Use and Land "
    "Cover Classification, JSTARS 2019",
    renamed={
        "AnnualCrop": "Annual Crop Land",
        "HerbaceousVegetation": "Herbaceous Vegetation Land",
        "Highway": "Highway or Road",
        "Industrial": "Industrial Buildings",
        "Pasture": "Pasture Land",
        "PermanentCrop": "Permanent Crop Land",
        "Residential": "Residential Buildings",
        "SeaLake": "Sea or Lake",
    },
    ensemble=(
        "a centered satellite photo of {}.",
        "a centered satellite photo of a {}.",
        "a centered satellite photo of the {}.",
    ),
)
FGVC_AIRCRAFT: Final = Facts(
    template="a photo of a {}, a type of aircraft.",
    licence="non-commercial research (stated by the authors)",
    citation="S. Maji et al., Fine-Grained Visual Classification of Aircraft, 2013, arXiv:1306.5151",
    ensemble=tuple(f"a photo of {article} {{}}, a type of aircraft." for article in _EACH),
)
FLOWERS102: Final = Facts(
    template="a photo of a {}, a type of flower.",
    licence="unknown (none stated by the authors)",
    citation="M.-E. Nilsback and A. Zisserman, Automated Flower Classification over a Large Number of "
    "Classes, ICVGIP 2008",
    ensemble=("a photo of a {}, a type of flower.",),
)
FOOD101: Final = Facts(
    template="a photo of {}, a type of food.",
    licence="unknown (images from foodspotting.com; scientific fair use, stated by the authors)",
    citation="L. Bossard et al., Food-101: Mining Discriminative Components with Random Forests, ECCV 2014",
    ensemble=("a photo of {}, a type of food.",),
)
OXFORD_PETS: Final = Facts(
    template="a photo of a {}, a type of pet.",
    licence="CC BY-SA 4.0",
    citation="O. M. Parkhi et al., Cats and Dogs, CVPR 2012",
    ensemble=("a photo of a {}, a type of pet.",),
)
STANFORD_CARS: Final = Facts(
    template=PHOTO,
    licence="non-commercial research (stated by the authors)",
    citation="J. Krause et al., 3D Object Representations for Fine-Grained Categorization, ICCV Workshops 2013",
    ensemble=(
        *(f"a photo of {whose} {{}}." for whose in ("a", "the", "my")),
        "i love my {}!",
        *(f"a photo of my {kind} {{}}." for kind in ("dirty", "clean", "new", "old")),
    ),
    spelled=_year_first,
)
SUN397: Final = Facts(
    template=PHOTO,
    licence="for research purposes (stated by the authors)",
    citation="J. Xiao et al., SUN Database: Large-scale Scene Recognition from Abbey to Zoo, CVPR 2010",
    ensemble=tuple(f"a photo of {article} {{}}." for article in _EACH),
    spelled=_kind_first,
)
UCF101: Final = Facts(
    template="a photo of a person doing {}.",
    licence="unknown (none stated by the authors)",
    citation="K. Soomro et al., UCF101: A Dataset of 101 Human Actions Classes From Videos in The Wild, 2012, "
    "arXiv:1212.0402",
    ensemble=tuple(
        f"a {kind} of {article} person {verb}{{}}."
        for verb in ("", "using ", "doing ", "during ", "performing ", "practicing ")
        for article in _EACH
        for kind in ("photo", "video", "example", "demonstration")
    ),
)

_COUNTRY211_ENSEMBLE: Final = (
    "a photo i took in {}.",
    "a photo i took while visiting {}.",
    "a photo from my home country of {}.",
    "a photo from my visit to {}.",
    "a photo showing the country of {}.",
)
COUNTRY211: Final = Facts(
    template=_COUNTRY211_ENSEMBLE[0],
    licence="Creative Commons licences chosen by the photographers (a subset of YFCC100M)",
    citation="A. Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021, "
    "arXiv:2103.00020",
    renamed=COUNTRIES,
    ensemble=_COUNTRY211_ENSEMBLE,
)
_FER2013_ENSEMBLE: Final = (
    "a photo of a {} looking face.",
    "a photo of a face showing the emotion: {}.",
    "a photo of a face looking {}.",
    "a face that looks {}.",
    "they look {}.",
    "look at how {} they are.",
)
FER2013: Final = Facts(
    template=_FER2013_ENSEMBLE[0],
    licence="unknown (none stated by the authors)",
    citation="I. J. Goodfellow et al., Challenges in Representation Learning: A Report on Three Machine Learning "
    "Contests, ICONIP 2013, arXiv:1307.0414",
    ensemble=_FER2013_ENSEMBLE,
)
_GTSRB_ENSEMBLE: Final = tuple(
    f'a {kind} photo of a "{{}}" traffic sign.' for kind in ("zoomed in", "centered", "close up")
)
GTSRB: Final = Facts(
    template=_GTSRB_ENSEMBLE[0],
    licence="unknown (none stated by the authors)",
    citation="J. Stallkamp et al., Man vs. Computer: Benchmarking Machine Learning Algorithms for Traffic Sign "
    "Recognition, Neural Networks 2012",
    ensemble=_GTSRB_ENSEMBLE,
)
MNIST: Final = Facts(
    template='a photo of the number: "{}".',
    licence="unknown (none stated by the authors)",
    citation="Y. LeCun et al., Gradient-Based Learning Applied to Document Recognition, Proceedings of the IEEE 1998",
    ensemble=('a photo of the number: "{}".',),
    spelled=lambda name: name.partition(" - ")[0],  # torchvision's names are "0 - zero", ...
)
PCAM: Final = Facts(
    template="this is a photo of {}",
    licence="CC0",
    citation="B. S. Veeling et al., Rotation Equivariant CNNs for Digital Pathology, MICCAI 2018, arXiv:1806.03962",
    ensemble=("this is a photo of {}",),
)
RENDERED_SST2: Final = Facts(
    template="a {} review of a movie.",
    licence="unknown (none stated by the authors)",
    citation="A. Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021, "
    "arXiv:2103.00020; sentences of R. Socher et al., EMNLP 2013",
    ensemble=("a {} review of a movie.",),
)
