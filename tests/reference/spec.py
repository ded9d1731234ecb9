"""Option texts: `mode[:key=value,...][@layers]`, joined by `;`, and `policy:budget=N,...`."""

# Built-in defaults, and the metadata key that may replace one.
OPTIONS = {
    "dense": {},
    "moba": {
        "block": (64, "attention.moba.block_size"),
        "topk": (16, "attention.moba.top_k"),
        "decode": ("sparse", None),
    },
    "topk": {
        "k": (128, "attention.topk.k"),
        "recent": (64, None),
        "sink": (4, None),
        "prefill": ("dense", None),
        "index": ("page", None),
    },
    "mosa": {
        "k": (64, "attention.mosa.k"),
        "dense_heads": (0, "attention.mosa.dense_heads"),
        "include_first": (False, "attention.mosa.include_first"),
        "select": ("prefix", None),
        "router": ("trained", None),
    },
    "landmark": {
        "block": (51, "attention.landmark.block_size"),
        "topk": (4, "attention.landmark.top_k"),
        "key": ("token", None),
    },
    "infini": {
        "segment": (2048, "attention.infini.segment_length"),
        "delta": (False, "attention.infini.delta_rule"),
        "gate": (None, None),
    },
}

EVICTION = {
    "budget": 0,
    "sink": 4,
    "recent": 0,
    "rerotate": 0,
    "block": 0,
    "window": 64,
    "kernel": 5,
    "beta": 20,
    "safeguard": 0.2,
    "lag": 128,
    "cross": 0,
    "future": 512,
    "covariance": 1,
    "renew": 64,
    "epsilon": 0.0,
}


def pairs(text):
    return dict(p.split("=", 1) for p in text.split(",") if p)


def value(text, like):
    if isinstance(like, bool):
        return text in ("1", "true")
    if isinstance(like, int):
        return int(text)
    try:
        return float(text)
    except ValueError:
        return text


def in_range(ranges, layer):
    for r in ranges.split(","):
        first, dash, last = r.partition("-")
        if int(first) <= layer <= (int(last) if last else 10**9 if dash else int(first)):
            return True
    return False


def for_layer(text, layer, n_layer):
    """(mode, given options) of a layer; layers without a mode are dense."""
    assert 0 <= layer < n_layer
    for part in text.split(";"):
        mode, _, ranges = part.partition("@")
        if not ranges or in_range(ranges, layer):
            name, _, opts = mode.partition(":")
            return name, pairs(opts)
    return "dense", {}


def options(mode, given, meta):
    """Every option of a mode: --attn values win over the file's, these over the defaults."""
    table = OPTIONS[mode]
    assert not set(given) - set(table), f"{mode} has no option {set(given) - set(table)}"
    result = {}
    for name, (default, key) in table.items():
        result[name] = value(given[name], default) if name in given else meta.get(key, default)
    return result


def eviction(text):
    """(policy, options), or None."""
    if not text:
        return None
    name, _, opts = text.partition(":")
    result = dict(EVICTION, rerotate=int(name == "streaming"))
    for key, v in pairs(opts).items():
        result[key] = value(v, result[key])
    return name, result
