"""Reference implementation in PyTorch: slow, readable, straight from the definitions.

model.py   the dense transformer, loaded from any GGUF file
modes.py   one function per attention mode
evict.py   KV-cache eviction, simulated batch by batch
spec.py    the --attn and --kv-evict option texts
tiny.py    makes small random GGUF models
hf.py      the same weights as a `transformers` model
"""
