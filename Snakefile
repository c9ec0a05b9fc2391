from snakemake.utils import min_version

min_version("9.0")


include: "workflows/rules/common.smk"
include: "workflows/rules/resolve.smk"
include: "workflows/rules/prepare.smk"
include: "workflows/rules/pretrain.smk"
include: "workflows/rules/pseudolabel.smk"
include: "workflows/rules/finetune.smk"
include: "workflows/rules/evaluate.smk"
include: "workflows/rules/report.smk"


rule all:
    default_target: True
    input:
        targets(PLAN),
