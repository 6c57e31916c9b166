"""What both packages do with torch and the Hugging Face libraries; each rule is written once, here.

``devices``: device, dtype and threads. ``batching``: batches whose rows do not depend on one another. ``weights``:
hashes of weights. ``checkpoints``: the files of weights. ``tokenizers``: the files of tokenizers. ``repositories``:
models of the Hugging Face hub. ``rows``: tables of hub datasets.
"""
