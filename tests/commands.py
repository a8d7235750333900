"""Commands run as a user types them."""

from click.testing import CliRunner

from conceptkit.cli.main import main


def run(*words: object) -> str:
    """What a command that succeeds writes on its standard output."""
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.stdout
