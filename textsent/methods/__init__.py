"""Text classification methods: one file each, and the file name is the registered name."""

from clipadapt.core.api.tracks import Examples, HubTask, Track

TRACK = Track(
    name="text",
    program="textsent",
    inputs="texts",
    examples=Examples(
        dataset="rotten_tomatoes:offline",
        model="minilm",
        recipe="tfidf_svm",
        baseline="tfidf_svm",
        sweep="sentiment-quick",
        export_format="hf",
        needs_model=False,
    ),
    reads_classnames=False,
    compiles=False,
    hub=HubTask(
        pipeline_tag="text-classification",
        title="text classification",
        argument='"a fine film"',
        examples='["a fine film"]',
    ),
    capabilities={"TextEncoder": "any encoder"},
)
