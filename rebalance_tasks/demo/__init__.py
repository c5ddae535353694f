"""The demo: a fleet of real files on six directories that balances itself before the newcomer's eyes.

It stands on top of everything and is used by nothing but the command line: it builds directories, starts a server, a
worker and beat as real processes, watches them as any operator would (through `rebalance_tasks.client`), and ends by
verifying every byte without help from the code that moved it.

- `corpus`: which files, how they are spread, the checksum manifest, ``rebalance.toml``
- `processes`: the worker and beat as processes that never outlive their parent
- `inspect`: what lies on the nodes, read from disk alone (progress, pause, final verification)
- `display`: live bars on a terminal, plain lines elsewhere
- `scenario`: the story, from an empty directory to the exit code
"""
