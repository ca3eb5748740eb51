from tltrain.config import default


def get_config():
    config = default()
    config.finetune.epochs = 1
    return config
