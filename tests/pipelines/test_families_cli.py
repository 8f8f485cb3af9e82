"""The door to the contract's matrix."""

from typer.testing import CliRunner

from pipelines.families import app


def test_it_prints_the_matrix_of_the_families_asked_for():
    result = CliRunner().invoke(app, ["vae", "diffusion"])
    assert result.exit_code == 0
    assert "| vae | vector | ✓ | ✓ | ✓ | – | ✓ | ✓ |" in result.stdout
    assert "2 families, 20 of 24 cells." in result.stdout


def test_an_unknown_family_is_one_line():
    result = CliRunner().invoke(app, ["gan"])
    assert result.exit_code == 2
    assert "unknown family 'gan'" in result.stderr
