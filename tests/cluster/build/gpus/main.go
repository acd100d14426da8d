// Pretended GPUs of a node for its real kubelet: NVIDIA's device plugin, or its driver for Dynamic
// Resource Allocation, as far as a kubelet can tell.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	devices := flag.String("devices", "", "JSON file: of a plugin, id to health; of a driver, names")
	resource := flag.String("resource", "", "serve a device plugin of this resource")
	kubeconfig := flag.String("kubeconfig", "", "serve a driver that publishes with this")
	node := flag.String("node", "", "name of the driver's node")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var err error
	if *resource != "" {
		err = servePlugin(ctx, *resource, *devices)
	} else {
		err = serveDriver(ctx, *kubeconfig, *node, *devices)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func readJSON(path string, into any) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(content, into)
}
