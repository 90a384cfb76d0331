def tell(out, settings): return {}
