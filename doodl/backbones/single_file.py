"""stub"""
def load_parts(path, dtype, device): raise NotImplementedError
