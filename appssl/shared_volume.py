"""Snakemake for jobs that share a volume, where its Kubernetes plugin assumes that they share nothing.

A stage leaves a whole folder behind, of which the workflow declares the manifest: what travels through a storage
provider would be the manifest alone. Every job mounts the volume at the same place instead, as nodes of a cluster do.
"""

import sys


def main() -> None:
    """`snakemake ARGUMENTS`, with the plugin's jobs on one file system."""
    from snakemake.cli import main as snakemake
    from snakemake_executor_plugin_kubernetes import common_settings

    common_settings.implies_no_shared_fs = False
    common_settings.auto_deploy_default_storage_provider = False  # it would install packages in every job
    snakemake(sys.argv[1:])


if __name__ == "__main__":
    main()
