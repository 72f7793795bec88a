"""Models that are one GGUF file, the format of llama.cpp: config, tokenizer and weights as Hugging Face has them."""
