"""The preference model: classifier, attention, losses, base models (bitsandbytes), LoRA (PEFT), precision."""
