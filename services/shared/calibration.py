"""Texts to measure a model with: on every machine, of many lengths, never a user's.

They are the pages of Python's own manual that come with the interpreter, cut into paragraphs.
"""

import random
from pydoc_data.topics import topics

# Numbers of paragraphs that are joined to one text, so that there are short and long ones.
_JOINED = (1, 1, 1, 2, 4)


def sample_texts(count: int, seed: int) -> list[str]:
    """Return texts of one to four paragraphs; the same seed gives the same ones."""
    paragraphs = [
        " ".join(paragraph.split())
        for _, page in sorted(topics.items())
        for paragraph in page.split("\n\n")
        if any(character.isalpha() for character in paragraph)
    ]
    chooser = random.Random(seed)
    return [" ".join(chooser.sample(paragraphs, chooser.choice(_JOINED))) for _ in range(count)]
