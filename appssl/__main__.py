"""`python -m appssl` is the command `appssl`."""

from appssl.cli.main import main

main()
