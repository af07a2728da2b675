"""One exact lookup."""

from catalogue.load import parse
from catalogue.resolve import Resolution, resolve

CATALOGUE = parse(
    b'[aliases]\n"helexa/large" = "Qwen/Qwen3.6-27B"\nshadow = "other"\n[[models]]\nid="shadow"\nharness="h"\n',
    path="models.toml",
    generation=1,
    loaded_at=0.0,
)


def test_alias_stands_for_its_target():
    """Both names are kept: the concrete one routes, the alias is for the log."""
    assert resolve(CATALOGUE, "helexa/large") == Resolution(model="Qwen/Qwen3.6-27B", alias="helexa/large")


def test_any_other_name_stands_for_itself():
    """Also one nobody has heard of: that is found out later."""
    assert resolve(CATALOGUE, "Qwen/Qwen3.6-27B") == Resolution(model="Qwen/Qwen3.6-27B", alias=None)
    assert resolve(CATALOGUE, "nonsense") == Resolution(model="nonsense", alias=None)


def test_alias_is_exact_to_the_letter():
    """No folding of case, no trimming."""
    for name in ("Helexa/large", "helexa/large ", "large", ""):
        assert resolve(CATALOGUE, name).alias is None


def test_alias_hides_a_model_of_its_name():
    """Deterministically so."""
    assert resolve(CATALOGUE, "shadow") == Resolution(model="other", alias="shadow")
