"""Entry point of the command line: `text-gym` and `python -m text_gym`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

OWN = Path(__file__).resolve().parent.parent / "agents" / "__init__.py"


def main() -> int:
    """Run agents.cli.main; if `agents` belongs to another package, print an error without importing it."""
    spec = importlib.util.find_spec("agents")
    found = Path(spec.origin).resolve() if spec is not None and spec.origin is not None else None
    if found != OWN or "text_gym" not in OWN.read_text(encoding="utf-8"):  # another package may have overwritten it
        sys.stderr.write(
            f"text-gym: 'import agents' finds {found or 'a folder without __init__.py'}, which does not belong to "
            "text-gym. Another package with the module name 'agents' is installed, for example openai-agents. "
            "Install text-gym into an environment of its own; or remove the other package, from PYTHONPATH too, and "
            "install text-gym again.\n"
        )
        return 2
    from agents.cli.main import main as command

    return command()


if __name__ == "__main__":
    sys.exit(main())
