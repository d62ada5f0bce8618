"""``python -m deploy`` is the `headrace` command: how processes of ours start each other without a PATH."""

from __future__ import annotations

from deploy.cli import main

if __name__ == "__main__":
    main()
