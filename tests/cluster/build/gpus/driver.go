package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	resource "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"
	"k8s.io/dynamic-resource-allocation/resourceslice"
)

const (
	driverName = "gpu.nvidia.com"
	cdiKind    = "k8s.gpu.nvidia.com/device"
	cdiFolder  = "/var/run/cdi"
)

// driver prepares what the scheduler has allocated; devices are a device's name to its attributes.
type driver struct {
	devices map[string]map[string]string
}

// serveDriver publishes the file's devices as the node's one pool, and prepares claims of them.
func serveDriver(ctx context.Context, kubeconfig, node, path string) error {
	served := &driver{}
	if err := readJSON(path, &served.devices); err != nil {
		return err
	}
	if err := served.writeCDI(); err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	data := filepath.Join(kubeletplugin.KubeletPluginsDir, driverName)
	if err := os.MkdirAll(data, 0o755); err != nil {
		return err
	}
	helper, err := kubeletplugin.Start(
		ctx, served, kubeletplugin.KubeClient(client), kubeletplugin.NodeName(node),
		kubeletplugin.DriverName(driverName), kubeletplugin.PluginDataDirectoryPath(data),
	)
	if err != nil {
		return err
	}
	defer helper.Stop()
	slice := resourceslice.Slice{Devices: served.published()}
	pool := resourceslice.Pool{Slices: []resourceslice.Slice{slice}}
	published := resourceslice.DriverResources{Pools: map[string]resourceslice.Pool{node: pool}}
	if err := helper.PublishResources(ctx, published); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

func (d *driver) published() []resource.Device {
	devices := []resource.Device{}
	for name, values := range d.devices {
		attributes := map[resource.QualifiedName]resource.DeviceAttribute{}
		for key, value := range values {
			attributes[resource.QualifiedName(key)] = resource.DeviceAttribute{StringValue: &value}
		}
		devices = append(devices, resource.Device{Name: name, Attributes: attributes})
	}
	return devices
}

// writeCDI says what each device does to a container, for runtimes that know of CDI.
func (d *driver) writeCDI() error {
	type edits struct {
		Env []string `json:"env"`
	}
	type device struct {
		Name  string `json:"name"`
		Edits edits  `json:"containerEdits"`
	}
	devices := []device{}
	for name, values := range d.devices {
		given := []string{"NVIDIA_VISIBLE_DEVICES=" + values["uuid"]}
		devices = append(devices, device{Name: name, Edits: edits{Env: given}})
	}
	spec, err := json.Marshal(map[string]any{
		"cdiVersion": "0.5.0", "kind": cdiKind, "devices": devices,
	})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(cdiFolder, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(cdiFolder, driverName+".json"), spec, 0o644)
}

// PrepareResourceClaims says on a line of JSON what each claim is given.
func (d *driver) PrepareResourceClaims(_ context.Context, claims []*resource.ResourceClaim) (map[types.UID]kubeletplugin.PrepareResult, error) {
	prepared := map[types.UID]kubeletplugin.PrepareResult{}
	for _, claim := range claims {
		result := kubeletplugin.PrepareResult{}
		for _, given := range claim.Status.Allocation.Devices.Results {
			if given.Driver != driverName {
				continue
			}
			result.Devices = append(result.Devices, kubeletplugin.Device{
				Requests: []string{given.Request}, PoolName: given.Pool, DeviceName: given.Device,
				CDIDeviceIDs: []string{cdiKind + "=" + given.Device},
			})
			line, err := json.Marshal(map[string]string{
				"claim": claim.Name, "uuid": d.devices[given.Device]["uuid"],
			})
			if err != nil {
				return nil, err
			}
			fmt.Println(string(line))
		}
		prepared[claim.UID] = result
	}
	return prepared, nil
}

func (d *driver) UnprepareResourceClaims(_ context.Context, claims []kubeletplugin.NamespacedObject) (map[types.UID]error, error) {
	done := map[types.UID]error{}
	for _, claim := range claims {
		done[claim.UID] = nil
	}
	return done, nil
}

func (d *driver) HandleError(_ context.Context, err error, message string) {
	fmt.Println(message, err)
}

func (d *driver) WatchHealthStatus(context.Context, chan<- kubeletplugin.DeviceHealthReport) error {
	return kubeletplugin.ErrHealthNotSupported
}
