# Complete settings of every stage. The recipe is ancient: only a changed setting, which is a parameter, re-runs a stage.
localrules:
    resolve,
    resolve_data,
    make,


rule resolve:
    input:
        recipe=ancient(recipe_file),
    output:
        config="<results>/{domain}/{recipe}/s{seed}/{stage}/config.yaml",
    log:
        "<results>/logs/{domain}/{recipe}/s{seed}/{stage}-resolve.log",
    conda:
        "../envs/appssl.yaml"
    threads: 1
    params:
        settings=settings_json,
    shell:
        "appssl resolve --settings {params.settings:q} --out {output.config:q} 2> {log:q}"


rule resolve_data:
    output:
        config="<results>/data/{key}/config.yaml",
    log:
        "<results>/logs/data/{key}/resolve.log",
    conda:
        "../envs/appssl.yaml"
    threads: 1
    params:
        settings=data_settings_json,
    shell:
        "appssl resolve --settings {params.settings:q} --out {output.config:q} 2> {log:q}"
