"""What export.py is made of: Hugging Face checkpoints on one side, GGUF files on the other.

checkpoint.py reads safetensors, config.py and tokenizer.py (with pretokenizer.py and sentencepiece_file.py)
what lies beside them, architecture.py knows which tensor becomes which, attn_params.py reads trained
attention parameters, gguf_file.py writes.
"""
